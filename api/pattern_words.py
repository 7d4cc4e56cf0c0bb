"""What text a field takes, in words: a regular expression is no advice."""

from collections.abc import Mapping

from metering.ids import ID_PATTERN

ID_FIX = "use 1 to 64 letters, digits, '.', '_', ':' or '-', beginning with a letter or digit"
_LINE = "use text of one line, without control characters"
_DECIMAL = "use a decimal number such as 12.50"

PATTERN_FIXES: Mapping[str, str] = {
    ID_PATTERN: ID_FIX,
    r"^[\x21-\x7e]+$": "use printable ASCII characters, without spaces",
    r"^[A-Za-z0-9._:*-]{1,64}$": "use an id, or how ids begin and a * at the end",
    r"^[!-~]{1,200}$": "use 1 to 200 printable ASCII characters, without spaces",
    r"^[!-~]{0,20}$": "use at most 20 printable ASCII characters, without spaces",
    r"^[A-Z]{3}$": "use an ISO 4217 code such as EUR",
    r"^[A-Z]{2}$": "use an ISO 3166 code of two letters such as DE",
    ID_PATTERN.removesuffix("$") + r"=[^\x00-\x1f\x7f]{0,200}$": (
        "use the label's name, = and its value, such as site=Hamburg"
    ),
    r"^[^\x00-\x1f\x7f]+$": _LINE,
    r"^[^\x00-\x1f\x7f]*$": _LINE,
    r"^[^\x00-\x1f\x7f]{1,64}$": f"{_LINE}, of 1 to 64 characters",
    r"^[^\x00-\x1f\x7f]{1,100}$": f"{_LINE}, of 1 to 100 characters",
    r"^[^\x00-\x1f\x7f]{1,200}$": f"{_LINE}, of 1 to 200 characters",
    r"^[^\x00]*$": "use text without the character NUL",
    r"^[^\x00]*[^\x00\s][^\x00]*$": "use text that is more than spaces",
    r"^[0-9]{17,20}$": "use the 17 to 20 digits of an ICCID",
    r"^[0-9]{6,15}$": "use the 6 to 15 digits of an IMSI",
    r"^[0-9]{14,16}$": "use the 14 to 16 digits of an IMEI",
    r"^[0-9]{32}$": "use the 32 digits of an EID",
    r"^[1-9][0-9]{4,14}$": "use 5 to 15 digits with the country's code, without + or 00",
    r"^[a-z_ -]{1,64}$": "use the name of an operation such as post_payment, or of a command: user create",
    r"^[a-z0-9_.]{1,64}$": "use a kind of event such as threshold.crossed",
    r"^\d{1,18}\.\d{1,18}$": "use the id of an event of this stream, unchanged",
    r"^(own|[0-9]{1,4})$": "use the variant's number in the plan, from 0, or own",
    r"^[0-9]{1,18}-[0-9]{1,18}-[0-9]{1,5}$": "use a charge's id as this API gave it",
    r"^[0-9]{1,18}-[0-9]{1,18}-[0-9]{1,16}$": "use a record's id as this API gave it",
    r"^[0-9]{1,18}-[0-9]{1,18}$": "use a reading's id as this API gave it",
    r"^[0-9]{1,17}-[0-9]{1,18}-[0-9]{1,6}$": "use a message's id as this API gave it",
    r"^[0-9]{1,12}(\.[0-9]{1,6})?$": f"{_DECIMAL}, not below 0, of at most 6 places",
    r"^-?[0-9]{1,12}(\.[0-9]{1,6})?$": f"{_DECIMAL} or -3.50, of at most 6 places",
    r"^[0-9]{1,12}(\.[0-9]{1,12})?$": f"{_DECIMAL}, not below 0, of at most 12 places",
    r"^[0-9]{1,30}(\.[0-9]{1,12})?$": f"{_DECIMAL}, not below 0, of at most 12 places",
    r"^[0-9]{1,3}(\.[0-9]{1,4})?$": "use a rate in per cent such as 19 or 5.5",
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$": "use a day such as 2026-03-29",
    r"^\s*[0-9]{1,40}(\.[0-9]{1,40})?\s*((thousand|million|billion)\s*)?([^\s0-9.,+-]\S*)?\s*$": (
        "use a quantity with its unit such as 500 MB"
    ),
    r"^[1-9][0-9]{0,4} (day|month|year)s?$": "use a length of time such as 3 months",
    r"^[A-Z]{2}[0-9]{2}[A-Z0-9]{8,30}$": "use an IBAN, without spaces",
    r"^[A-Z0-9]{8}([A-Z0-9]{3})?$": "use a BIC of 8 or 11 capitals and digits",
    r"^[^\s0-9.,+-][^\s]{0,19}$": "use a unit such as MB, without spaces",
    r"^[0-9]{1,9}(/[1-9][0-9]{0,8})?$": "use a fraction such as 1/3",
}
"""By pattern; a test says which one of the OpenAPI document lacks its words."""
