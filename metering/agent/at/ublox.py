"""u-blox: `AT+UGCNTRD`, a line for each context that is or was active.

`+UGCNTRD: <cid>,<sent in session>,<received in session>,<sent in total>,<received in total>`; the
totals go on from session to session, until `AT+UGCNTSET` or the module's end.
"""

import re

from metering.agent.at.table import CounterQuery, CounterTable

UBLOX = CounterTable(
    vendor="ublox",
    makers=("u-blox",),
    queries=(
        CounterQuery(
            command="AT+UGCNTRD",
            line=re.compile(
                r"\+UGCNTRD:\s*(?P<cid>\d+),\s*\d+,\s*\d+,\s*(?P<up>\d+),\s*(?P<down>\d+)"
            ),
        ),
    ),
    sim="AT+CCID",
)
