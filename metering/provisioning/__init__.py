"""Gives devices credentials at the broker and takes them away; starts whoever tells the broker of them."""
