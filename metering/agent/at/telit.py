"""Telit: `AT#GDATAVOL=2`, a line for each context that has an access point name.

`#GDATAVOL: <cid>,<both>,<sent>,<received>`: totals of all sessions since `AT#GDATAVOL=0`, kept in
non-volatile memory. Mode 1 tells the last session alone, and forgets it at power off.
"""

import re

from metering.agent.at.table import CounterQuery, CounterTable

TELIT = CounterTable(
    vendor="telit",
    makers=("telit", "cinterion"),
    queries=(
        CounterQuery(
            command="AT#GDATAVOL=2",
            line=re.compile(r"#GDATAVOL:\s*(?P<cid>\d+),\s*\d+,\s*(?P<up>\d+),\s*(?P<down>\d+)"),
        ),
    ),
    sim="AT#CCID",
)
