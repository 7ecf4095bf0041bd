"""The exceptions that mean "the person at the keyboard can fix this", and one that a smaller batch may fix."""


class UserError(Exception):
    """A mistake in the input. The command line prints it as one line and exits with code 2.

    The message says what was expected, what came, and what to do.
    """


class UnsupportedNetwork(UserError):
    """A method cannot handle this network at all; the message names the layer. Another method may."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error says that memory ran out, on an accelerator or on the CPU."""
    import torch  # here: complaints about arguments need no torch, and come at once

    text = str(error)
    kinds = (MemoryError, torch.cuda.OutOfMemoryError)
    return isinstance(error, kinds) or "out of memory" in text or "DefaultCPUAllocator" in text
