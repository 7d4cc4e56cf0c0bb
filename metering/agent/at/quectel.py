"""Quectel: `AT+QGDCNT?` of all contexts together, and `AT+QGDNRCNT?` of 5G beside it.

`+QGDCNT: <sent>,<received>` since the module's start or `AT+QGDCNT=0`; it goes on over a restart of
the module from what `AT+QAUGDCNT` saved last, so it may then fall. A module without 5G answers the second
command with an error.
"""

import re

from metering.agent.at.table import CounterQuery, CounterTable

QUECTEL = CounterTable(
    vendor="quectel",
    makers=("quectel",),
    queries=(
        CounterQuery(
            command="AT+QGDCNT?",
            line=re.compile(r"\+QGDCNT:\s*(?P<up>\d+),\s*(?P<down>\d+)"),
            name="all",
        ),
        CounterQuery(
            command="AT+QGDNRCNT?",
            line=re.compile(r"\+QGDNRCNT:\s*(?P<up>\d+),\s*(?P<down>\d+)"),
            name="nr",
        ),
    ),
    sim="AT+QCCID",
)
