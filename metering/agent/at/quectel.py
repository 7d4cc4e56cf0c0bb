"""Quectel: `AT+QGDCNT?` of all contexts together, and `AT+QGDNRCNT?` where the module has 5G.

`+QGDCNT: <sent>,<received>` since the module's start or `AT+QGDCNT=0`; it goes on over a restart of
the module from what `AT+QAUGDCNT` saved last, so it may then fall. The second command tells the same in the
same form, 5G included by the manual; modules were seen on which the first tells a little more. Both count the
same octets, so the larger holds, and never their sum. A module without 5G answers with an error.
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
            name="all",
        ),
    ),
    sim="AT+QCCID",
    overlapping=True,
)
