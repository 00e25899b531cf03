"""Finding the words of a query in the packed search index (storage/search/blob.py): which messages have which.

Pure: bytes and values in, columns of numbers out. What they are worth, storage/search/rank.py says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from storage.search.blob import (
    CHUNK,
    IN_HEAD,
    NAMED,
    PRESENT,
    SLOT,
    Document,
    OpenBlob,
    chunk_of,
    count_terms,
    document_row,
    document_type,
    hash_terms,
)
from storage.value import frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Terms of a query that are scored, the rarest. A question has about 7.
_QUERY_TERMS = 64
# Names of the first hits that a second look asks for.
_NAMES = 8

# An index larger than this takes longer to rank than to lay out, so its layout is not cached.
_CACHED_BYTES = 128 * 1024


@frozen
class IndexLayout:
    """Every document as a row, 64 rows to a chunk, in the order of the chunks: all that is known before a query.

    first_rows: the first row of each opened blob. present, flags, lengths, heads, back: by row. earlier, later: by row
    the rows of its neighbours, -1 for none.
    """

    first_rows: NDArray[np.int64]
    seqs: NDArray[np.int64]
    present: NDArray[np.bool_]
    flags: NDArray[np.uint8]
    lengths: NDArray[np.float64]
    heads: NDArray[np.float64]
    back: NDArray[np.int64]
    earlier: NDArray[np.int64]
    later: NDArray[np.int64]

    def has(self, flag: int) -> NDArray[np.bool_]:
        """Returns by row whether it has this flag."""
        return (self.flags & flag) > 0


@frozen
class Found:
    """Every occurrence of a query term, one for each document and term, in columns.

    in_general: of each term of the query the share of people's messages that has it. term: its number in the query.
    in_tail: the rows of the messages that are not indexed yet, in their order.
    """

    layout: IndexLayout
    in_general: NDArray[np.float64]
    row: NDArray[np.int64]
    term: NDArray[np.int64]
    frequency: NDArray[np.int64]
    in_head: NDArray[np.bool_]
    in_tail: NDArray[np.int64]


# A person's index changes once in a dozen messages, and each of these is a query.
@lru_cache(maxsize=256)
def lay_out_again(opened: tuple[OpenBlob, ...], more: tuple[int, ...]) -> IndexLayout:
    return _lay_out(opened, more)


def _lay_out(opened: Sequence[OpenBlob], more: Collection[int]) -> IndexLayout:
    """Returns the rows of these blobs. more: chunks that get rows as well, for messages not indexed yet."""
    import numpy as np

    chunks = sorted({blob.chunk for blob in opened}.union(more))
    first_row = {chunk: place * CHUNK for place, chunk in enumerate(chunks)}
    seqs = (np.array(chunks, np.int64)[:, None] * CHUNK + np.arange(CHUNK)).ravel()
    table = np.zeros((len(chunks), CHUNK), document_type())
    first_rows = np.array([first_row[blob.chunk] for blob in opened], np.int64)
    if opened:
        joined = b"".join([blob.table for blob in opened])
        table[first_rows // CHUNK] = np.frombuffer(joined, document_type()).reshape(-1, CHUNK)
    documents = table.ravel()
    flags = documents["flags"]
    present = (flags & PRESENT) > 0
    back = documents["back"].astype(np.int64)
    earlier, later = _neighbours(seqs, present, back)
    return IndexLayout(
        first_rows=first_rows,
        seqs=seqs,
        present=present,
        flags=flags,
        lengths=documents["length"].astype(np.float64),
        heads=documents["head"].astype(np.float64),
        back=back,
        earlier=earlier,
        later=later,
    )


def _lay_over(layout: IndexLayout, rows: NDArray[np.int64], tail: Sequence[Document]) -> IndexLayout:
    """Returns the layout with the messages of the tail in their rows."""
    import numpy as np

    lengths, back, flags, heads = np.array(
        [document_row(each, count_terms(each)) for each in tail], np.int64
    ).T
    present, new_back = layout.present.copy(), _put(layout.back, rows, back)
    present[rows] = True
    earlier, later = _neighbours(layout.seqs, present, new_back)
    return replace(
        layout,
        present=present,
        flags=_put(layout.flags, rows, flags),
        lengths=_put(layout.lengths, rows, lengths),
        heads=_put(layout.heads, rows, heads),
        back=new_back,
        earlier=earlier,
        later=later,
    )


def _put(column: NDArray[Any], rows: NDArray[np.int64], values: NDArray[Any]) -> NDArray[Any]:
    changed = column.copy()
    changed[rows] = values
    return changed


def _neighbours(
    seqs: NDArray[np.int64], present: NDArray[np.bool_], back: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns for each row the row of the message before it and of the one behind it, -1 for none."""
    import numpy as np

    linked = ((back > 0) & present).nonzero()[0]
    target = seqs[linked] - back[linked]
    if seqs[-1] - seqs[0] < len(seqs):
        target_row = np.maximum(target - seqs[0], 0)
    else:
        # Chunks are missing in between, so that a row is not found by counting.
        target_row = np.minimum(seqs.searchsorted(target), len(seqs) - 1)
    right = (seqs[target_row] == target) & present[target_row]
    linked, target_row = linked[right], target_row[right]
    earlier = np.full(len(seqs), -1, np.int64)
    later = earlier.copy()
    earlier[linked] = target_row
    later[target_row] = linked
    return earlier, later


def find(
    opened: Sequence[OpenBlob],
    tail: Sequence[Document],
    terms: Sequence[str],
    in_general: Sequence[float],
    secret: bytes,
) -> Found:
    import numpy as np

    is_small = sum(len(blob.data) for blob in opened) <= _CACHED_BYTES
    more = sorted({chunk_of(document.seq) for document in tail}.difference(blob.chunk for blob in opened))
    layout = lay_out_again(tuple(opened), tuple(more)) if is_small else _lay_out(opened, more)
    row, term, frequency, in_head = _occurrences(
        opened, layout.first_rows, hash_terms(terms, secret).values()
    )
    # All documents with an entry are present, but in a damaged blob.
    stays = layout.present[row]
    replaced = np.empty(0, np.int64)
    if tail:
        # Rows are in the order of their numbers. What a blob says of a message in the tail does not count any more.
        replaced = layout.seqs.searchsorted([document.seq for document in tail])
        layout = _lay_over(layout, replaced, tail)
        is_replaced = np.zeros(len(layout.seqs), bool)
        is_replaced[replaced] = True
        stays &= ~is_replaced[row]
    if not stays.all():
        row, term, frequency, in_head = row[stays], term[stays], frequency[stays], in_head[stays]
    if tail:
        row, term, frequency, in_head = _with_tail(tail, replaced, terms, (row, term, frequency, in_head))
    if len(terms) > _QUERY_TERMS:
        # A pasted page is ranked by its rarest words that occur at all; the others would cost and decide nothing.
        rarest = np.bincount(term, minlength=len(terms)).argsort(kind="stable")
        rarest = rarest[np.isin(rarest, term)][:_QUERY_TERMS]
        stays = np.isin(term, rarest)
        row, term, frequency, in_head = row[stays], term[stays], frequency[stays], in_head[stays]
    return Found(layout, np.array(in_general), row, term, frequency, in_head, replaced)


def widen(
    found: Found,
    opened: Sequence[OpenBlob],
    tail: Sequence[Document],
    best: Sequence[int],
    known: Mapping[str, int],
    secret: bytes,
) -> Found | None:
    """Returns what is found with the names of the best rows as well; None where they add none. known: of the query.

    A name that comes from the index is not looked for in the tail, whose words would all have to be hashed for it.
    """
    import numpy as np

    document_at = dict(zip(found.in_tail.tolist(), tail, strict=True))
    blob_at = dict(zip(found.layout.first_rows.tolist(), opened, strict=True))
    named = dict[int, str]()
    for place in best:
        if place in document_at:
            named.update(
                (value, term)
                for term, value in hash_terms(sorted(count_terms(document_at[place]).named), secret).items()
            )
        elif place - place % CHUNK in blob_at:
            blob = blob_at[place - place % CHUNK]
            places = np.frombuffer(blob.columns, np.uint8, blob.entries)
            is_name = (places & (NAMED | SLOT)) == (NAMED | place % CHUNK)
            named.update((value, named.get(value, "")) for value in blob.hashes[is_name].tolist())
    more = {value: term for value, term in named.items() if value not in set(known.values())}
    more = dict(list(more.items())[:_NAMES])
    if not more:
        return None
    row, term, frequency, in_head = _occurrences(opened, found.layout.first_rows, more.keys())
    stays = found.layout.present[row] & ~np.isin(row, found.in_tail)
    added = row[stays], term[stays], frequency[stays], in_head[stays]
    if tail:
        added = _with_tail(tail, found.in_tail, list(more.values()), added)
    row, term, frequency, in_head = added
    return replace(
        found,
        in_general=np.concatenate((found.in_general, np.zeros(len(more)))),
        row=np.concatenate((found.row, row)),
        term=np.concatenate((found.term, term + len(found.in_general))),
        frequency=np.concatenate((found.frequency, frequency)),
        in_head=np.concatenate((found.in_head, in_head)),
    )


_Occurrences = tuple["NDArray[np.int64]", "NDArray[np.int64]", "NDArray[np.int64]", "NDArray[np.bool_]"]


def _with_tail(
    tail: Sequence[Document], rows: NDArray[np.int64], terms: Sequence[str], found: _Occurrences
) -> _Occurrences:
    """Returns the occurrences together with those in the tail. rows: of the tail's messages."""
    import numpy as np

    number_of = {term: number for number, term in enumerate(terms)}
    added = list[tuple[int, int, int, bool]]()
    for at, document in zip(rows.tolist(), tail, strict=True):
        counted = count_terms(document)
        added += [
            (at, number_of[word], counted.frequency[word], word in counted.head)
            for word in number_of.keys() & counted.frequency.keys()
        ]
    if not added:
        return found
    more = np.array(added, np.int64)
    row, term, frequency, in_head = found
    return (
        np.concatenate((row, more[:, 0])),
        np.concatenate((term, more[:, 1])),
        np.concatenate((frequency, more[:, 2])),
        np.concatenate((in_head, more[:, 3] > 0)),
    )


def _occurrences(
    opened: Sequence[OpenBlob], first_rows: NDArray[np.int64], hashes: Collection[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Returns rows, terms, frequencies and head marks of all entries with one of these hashes."""
    import numpy as np

    if not opened:
        none = np.empty(0, np.int64)
        return none, none, none, none > 0
    # The entries of a blob are sorted by hash: those of one hash lie from its own place to that of the next number.
    k = len(hashes)
    keys = np.array([*hashes, *(value + 1 for value in hashes)], "<u4")
    bounds = np.empty((len(opened), 2 * k), np.int64)
    for number, blob in enumerate(opened):
        bounds[number] = blob.hashes.searchsorted(keys)
    low = bounds[:, :k].ravel()
    # A count is negative only where a damaged blob is out of order.
    counts = np.maximum(bounds[:, k:].ravel() - low, 0)
    # From here on a group is one hash in one blob; `within` numbers the entries of all groups by their place in their
    # blob, and `at` by their place in the columns of all blobs put together.
    ends = counts.cumsum()
    group = np.arange(len(counts)).repeat(counts)
    blob_number, term = np.divmod(group, k)
    within = np.arange(ends[-1]) + (low - ends + counts)[group]
    sizes = np.array([blob.entries for blob in opened], np.int64)
    joined = np.frombuffer(b"".join([blob.columns for blob in opened]), np.uint8)
    at = within + (2 * (sizes.cumsum() - sizes))[blob_number]
    place = joined[at]
    frequency = joined[at + sizes[blob_number]].astype(np.int64)
    return first_rows[blob_number] + (place & SLOT), term, frequency, (place & IN_HEAD) > 0
