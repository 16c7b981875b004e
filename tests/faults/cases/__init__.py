"""The cases, by what they hurt. Importing this registers all of them."""

from tests.faults.cases import backlog as backlog
from tests.faults.cases import broker as broker
from tests.faults.cases import clients as clients
from tests.faults.cases import clocks as clocks
from tests.faults.cases import disks as disks
from tests.faults.cases import fanout as fanout
from tests.faults.cases import frozen as frozen
from tests.faults.cases import gateway as gateway
from tests.faults.cases import partition as partition
from tests.faults.cases import plain as plain
from tests.faults.cases import poison as poison
from tests.faults.cases import soak as soak
from tests.faults.cases import store as store
from tests.faults.cases import workers as workers
