"""A study whose points take as long as they are left alone."""

import os
import time

from squares import Squares


class Naps(Squares):
    """Writes down who measures a point, and sleeps."""

    def measure(self, point, device, folder):
        (folder / "pid").write_text(str(os.getpid()))
        time.sleep(600)
