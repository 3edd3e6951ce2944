"""Folding the first batches of a journal: one file of weights instead of a file of factors for each."""

from __future__ import annotations

from lit_edit.errors import EditError
from lit_edit.journal import files
from lit_edit.journal.book import Book
from lit_edit.journal.model import Unedited


def compact(book: Book, count: int) -> str:
    """Keep the weights behind the first ``count`` batches, and remove the factors of those batches.

    What is kept are the weights themselves, float32: one change added to the original weights would not give the same bits as
    many. Records stay, so that the chain does; the file is compared with the record of the last batch it stands for whenever
    it is read. What lies before can then be neither replayed nor rolled back to, except where a checkpoint is.

    Args:
        book: the journal.
        count: batches to fold.

    Returns:
        What was done, in a sentence.

    Raises:
        EditError: if there are not so many, fewer than are folded already, or the replay is not what the run had.
    """
    book.upto(count)
    done = book.base[0] if book.base else 0
    if count <= done:
        raise EditError(f"the first {done} batches of {book.path} are folded already; name more with --before")
    before = _size(book)
    model = Unedited.of(book.run, book.layers)
    path = files.write_base(book.run, count, book.weights(model.original, count))
    folded = Book(book.run, book.records)
    folded.folded()  # what it replaces goes only once it is read back
    later = [files.batch_name(number) for number in range(count, len(book.records))]
    files.clean(book.run, [f"journal/{path.name}", *later])
    now = _size(book)
    return f"The first {count} of {len(book.records)} batches are folded into {path}: {before} bytes of factors are now {now}"


def _size(book: Book) -> int:
    return sum(path.stat().st_size for path in (book.run / "journal").glob("*.safetensors"))
