"""Errors of a wire protocol: our own, or the other side's."""


class ProtocolError(Exception):
    """A rule of a wire protocol was broken; always raised as one of the two subclasses."""


class LocalProtocolError(ProtocolError):
    """A session was asked for something that the protocol does not allow now: a fault of ours."""


class RemoteProtocolError(ProtocolError):
    """The other side sent something that the protocol does not allow; the connection must end.

    The text is one line: the received message, and the expected one.
    """
