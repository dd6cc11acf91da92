"""What every command shares: how it ends."""

import os
import sys
from collections.abc import Callable


def run(main: Callable[[], None]) -> int:
    """Calls `main` and returns the exit code of the process.

    0 after a return; 1 after bad input or a failing disk or network, explained in one message on stderr
    without a traceback; 130, as shells count it, after Ctrl-C. (Bad flags end in 2, which is tyro's doing.)
    A reader that closes the pipe early, like `head`, is no error.
    """
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails again
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
