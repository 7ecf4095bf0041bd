"""What ends a command in one line: mistakes of the user, a request to stop; and memory that a smaller batch saves."""


class UserError(Exception):
    """A mistake in the input. The command line prints it as one line and exits with code 2.

    The message says what was expected, what came, and what to do.
    """


class UnsupportedNetwork(UserError):
    """A method cannot handle this network at all; the message names the layer. Another method may."""


class NoBounds(UnsupportedNetwork):
    """What a method returned for this network are no bounds: a point of a box was found outside."""


class Diverged(UserError):
    """Training came to a loss that is not finite."""


class Interrupted(Exception):
    """Training was asked to stop; its state is in the checkpoint. All processes that train together raise it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error says that memory ran out, on an accelerator or on the CPU."""
    import torch  # here: complaints about arguments need no torch, and come at once

    text = str(error)
    kinds = (MemoryError, torch.cuda.OutOfMemoryError)
    words = ("out of memory", "DefaultCPUAllocator", "ALLOC_FAILED", "ALLOCATION_FAILED")  # cuBLAS's and cuDNN's own
    return isinstance(error, kinds) or any(word in text for word in words)
