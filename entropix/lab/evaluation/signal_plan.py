"""What the part signal reads."""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entropix import files
from entropix.config import MAX_INT32, parameter
from entropix.presets import shipped


@dataclass(frozen=True)
class SignalPlan:
    """How much is read. Texts are documents with empty lines between them; the shipped ones unless others are named."""

    texts: tuple[str, ...] = parameter((), "files, beside the protocol's own")
    answers: int = parameter(32, "answers of the model's own to read, of each kind", 0, MAX_INT32)
    max_new_tokens: int = parameter(64, "of these answers", 1, MAX_INT32, "tokens")
    bins: int = parameter(4, "of position, equally full", 1, 64)

    def beside(self, folder: Path) -> "SignalPlan":
        """With the names of files relative to a folder made whole."""
        return dataclasses.replace(self, texts=tuple(str(folder / name) for name in self.texts))

    def documents(self) -> list[str]:
        """The texts. Raises a ValueError for a file that cannot be read."""
        names = self.texts or (str(shipped("calibration.txt")),)
        return [
            part.strip() for name in names for part in files.read_text(name).split("\n\n") if part.strip()
        ]

    def described(self) -> dict[str, Any]:
        """What results depend on, as JSON has it; texts by their digest."""
        whole = hashlib.sha256("\n\n".join(self.documents()).encode()).hexdigest()
        return {**dataclasses.asdict(self), "texts": whole}
