"""A store of format 1, which earlier versions wrote, brought to format 2: its files get headers and checksums.

Each file is replaced as a whole, and `store.json` says the new format when all are done. A killed upgrade leaves a
store that is read as before, and the same command goes on with it.
"""

import os
from collections.abc import Iterator

import numpy as np

from ..errors import InputError
from ..files import written_whole
from .entry_files import BlockFile, begins_with_magic
from .store import FORMAT, TeacherStore, disk_errors_named, identity_of_store, write_description


def upgrade(directory: str | os.PathLike) -> Iterator[tuple[str, int]]:
    """Bring a store to the current format; nobody may write it meanwhile.

    Yields the name of each file that was rewritten and how many answers it holds. Answers that cannot be any are left
    out; the store says so.

    Raises:
        InputError: no store, one of the current format, or a file of another size than its views take.
        LocalInputError: the disk is full or refuses; the same command goes on.
    """
    store = TeacherStore(directory)
    if store.has_checksums:
        raise InputError(f"{directory} is of format {FORMAT} already; there is nothing to upgrade")
    if store.identity is None:
        store.identity = identity_of_store(store.fingerprint)
        write_description(store.directory, store.fingerprint, store.about, store.identity)
    for epoch in store.epochs():
        path = store.path(epoch)
        if not begins_with_magic(path):
            entries, known = store.read(epoch, np.arange(store.num_views))
            with disk_errors_named(path), written_whole(path) as partial:
                file = BlockFile(partial, epoch, store.identity, store.dtype, store.num_views)
                file.write(np.flatnonzero(known), entries[known])
            yield path.name, int(np.count_nonzero(known))
    kept = store.validation()
    store.fingerprint["format"] = FORMAT
    if kept is not None:
        store.keep_validation(kept)
    write_description(store.directory, store.fingerprint, store.about, store.identity)
