"""The requests of a front-end, a class each.

QEMU docs/interop/vhost-user.rst, "Front-end message types". Sizes are of the payload, in bytes.

answer   "ack" is a 64-bit result, sent only where REPLY_ACK was negotiated and the request asks for
         it; "result" is one that is always sent; others are classes of `replies`, always sent. In
         parentheses what takes its place between POSTCOPY_LISTEN and POSTCOPY_END.
needs    protocol features that have to be negotiated, or a feature of virtio where it says so;
         "offered": the back-end's offer is enough.

==  =========================  ======  ====  ==================  ==========================================
 #  request                    size    fds   answer              needs
==  =========================  ======  ====  ==================  ==========================================
 1  GET_FEATURES               0       0     Features            -
 2  SET_FEATURES               8       0     ack                 -
 3  SET_OWNER                  0       0     ack                 -
 4  RESET_OWNER                0       0     ack                 -
 5  SET_MEM_TABLE              8+32n   n     ack (MappedTable)   -
 6  SET_LOG_BASE               16      1     result              LOG_SHMFD
 7  SET_LOG_FD                 0       1     ack                 -
 8  SET_VRING_NUM              8       0     ack                 -
 9  SET_VRING_ADDR             40      0     ack                 -
10  SET_VRING_BASE             8       0     ack                 -
11  GET_VRING_BASE             8       0     VringBase           -
12  SET_VRING_KICK             8       0, 1  ack                 -
13  SET_VRING_CALL             8       0, 1  ack                 -
14  SET_VRING_ERR              8       0, 1  ack                 -
15  GET_PROTOCOL_FEATURES      0       0     ProtocolFeatures    feature PROTOCOL_FEATURES, offered
16  SET_PROTOCOL_FEATURES      8       0     ack                 feature PROTOCOL_FEATURES, offered
17  GET_QUEUE_NUM              0       0     Number              MQ, offered
18  SET_VRING_ENABLE           8       0     ack                 feature PROTOCOL_FEATURES, offered
19  SEND_RARP                  8       0     ack                 RARP, offered
20  NET_SET_MTU                8       0     ack                 MTU, offered
21  SET_BACKEND_REQ_FD         0       1     ack                 BACKEND_REQ, offered
22  IOTLB_MSG                  26, 32  0     result              feature ACCESS_PLATFORM
23  SET_VRING_ENDIAN           8       0     ack                 CROSS_ENDIAN
24  GET_CONFIG                 12+n    0     Config              CONFIG
25  SET_CONFIG                 12+n    0     ack                 CONFIG
26  CREATE_CRYPTO_SESSION      any     0     CryptoSession       CRYPTO_SESSION
27  CLOSE_CRYPTO_SESSION       8       0     ack                 CRYPTO_SESSION
28  POSTCOPY_ADVISE            0       0     UserFault           PAGEFAULT
29  POSTCOPY_LISTEN            0       0     ack                 PAGEFAULT
30  POSTCOPY_END               0       0     result              PAGEFAULT
31  GET_INFLIGHT_FD            20, 24  0     Inflight            INFLIGHT_SHMFD
32  SET_INFLIGHT_FD            20, 24  1     ack                 INFLIGHT_SHMFD
33  GPU_SET_SOCKET             0       1     ack                 -
34  RESET_DEVICE               0       0     ack                 RESET_DEVICE
35  VRING_KICK                 8       0     ack                 REPLY_ACK|BACKEND_REQ|INBAND_NOTIFICATIONS
36  GET_MAX_MEM_SLOTS          0       0     Number              CONFIGURE_MEM_SLOTS
37  ADD_MEM_REG                40      1     ack (MappedRegion)  CONFIGURE_MEM_SLOTS
38  REM_MEM_REG                40      0     ack                 CONFIGURE_MEM_SLOTS
39  SET_STATUS                 8       0     ack                 STATUS
40  GET_STATUS                 0       0     Status              STATUS
41  GET_SHARED_OBJECT          16      0     SharedObject        SHARED_OBJECT
42  SET_DEVICE_STATE_FD        8       1     TransferChannel     DEVICE_STATE
43  CHECK_DEVICE_STATE         0       0     result              DEVICE_STATE
44  GET_SHMEM_CONFIG           0       0     SharedMemory        SHMEM
45  GET_VRING_BASE_SKIP_DRAIN  8       0     VringBase           INFLIGHT_SHMFD|GET_VRING_BASE_INFLIGHT|
                                                                 GET_VRING_BASE_SKIP_DRAIN
==  =========================  ======  ====  ==================  ==========================================
"""

from __future__ import annotations

from protocol.vhost_user.message import FrontendMessage, by_number
from protocol.vhost_user.messages import (  # noqa: F401  # the modules whose classes the table holds
    device_types,
    memory,
    migration,
    setup,
    vrings,
)

FRONTEND_REQUESTS = by_number(FrontendMessage)
"""The class of every front-end request by its number."""
