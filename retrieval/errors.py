"""The one exception that is the user's to act on."""

import errno

CUT_SHORT = ("No space left on device", "PytorchStreamWriter failed writing", "unexpected pos")  # torch's, the last two
WITHOUT_MEMORY = ("allocate memory", "not enough memory", "bad_alloc", "failed to map segment")


class UserError(ValueError):
    """The user's input or environment is at fault.

    The message is one line: which file or flag, what was found, what to do. The command line prints it and exits with 2.
    """


class Gone(UserError):
    """What was opened is no longer where it was."""


def first_line(error: BaseException) -> str:
    """What another library's error says, on one line."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def is_disk_full(error: BaseException) -> bool:
    """Whether `error` means "no space left": libraries (HDF5, safetensors, FAISS) keep only the text of the errno, or that less was
    written than was to be."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(words in str(error) for words in CUT_SHORT)


def is_file_too_large(error: BaseException) -> bool:
    """Whether a file was to be larger than the process may write: safetensors keeps only the text of the errno."""
    return isinstance(error, OSError) and error.errno == errno.EFBIG or f"(os error {errno.EFBIG})" in str(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine's memory, or what this process may have of it, is used up: torch and FAISS keep only a text."""
    told = str(error).lower()
    return isinstance(error, MemoryError) or any(words in told for words in WITHOUT_MEMORY)
