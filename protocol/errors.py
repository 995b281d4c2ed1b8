"""The two ways in which a protocol can be broken: by us, or by the other side."""


class ProtocolError(Exception):
    """A rule of a wire protocol was broken. Raised only as one of its two subclasses."""


class LocalProtocolError(ProtocolError):
    """We asked a session for something the protocol does not allow now: a bug on our side."""


class RemoteProtocolError(ProtocolError):
    """The other side sent something the protocol does not allow. The connection is of no further use.

    The text is one line that names what came and what was expected.
    """
