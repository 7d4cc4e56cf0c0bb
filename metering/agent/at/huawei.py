"""Huawei: `AT^DSFLOWQRY`, in hexadecimal digits, 16 of them for octets.

`^DSFLOWQRY: <seconds>,<sent>,<received>,<seconds in total>,<sent in total>,<received in total>`: the
first three of the last connection, the others of all since `AT^DSFLOWCLR`; a data stick begins again when
it is switched on. Some firmware puts a space or `0x` before the digits; both are read.
"""

import re

from metering.agent.at.table import CounterQuery, CounterTable

_HEX = r"(?:0x)?[0-9A-Fa-f]+"

HUAWEI = CounterTable(
    vendor="huawei",
    makers=("huawei",),
    queries=(
        CounterQuery(
            command="AT^DSFLOWQRY",
            line=re.compile(
                rf"\^DSFLOWQRY:\s*(?:{_HEX},\s*){{4}}(?P<up>{_HEX}),\s*(?P<down>{_HEX})"
            ),
            base=16,
            name="all",
        ),
    ),
    sim="AT^ICCID?",
    width=64,
)
