"""Comparisons as token ids in a file, for the trainer to read from."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow
from datasets import Dataset
from tqdm.auto import tqdm

from toolkit.data.encoding import Encoder, chunks
from toolkit.data.records import Placed

SCHEMA = pyarrow.schema(
    {
        "candidate_ids": pyarrow.list_(pyarrow.list_(pyarrow.int32())),
        "best": pyarrow.int32(),
        "ranking": pyarrow.list_(pyarrow.int32()),
        "worst": pyarrow.int32(),
        "scores": pyarrow.list_(pyarrow.float64()),
        "margin": pyarrow.float64(),
        "weight": pyarrow.float64(),
        "row": pyarrow.int64(),
    }
)


def encode_to_disk(
    encoder: Encoder,
    rows: Iterable[Placed],
    path: Path,
    total: int | None = None,
    end_id: int | None = None,
) -> Dataset:
    """Encode rows into an Arrow file; return a dataset that reads from it.

    Memory does not grow with the number of rows: 512 are held at a time.

    Args:
        encoder: counts what is dropped and cut.
        rows: with their places.
        path: the file, which must outlive the dataset.
        total: number of rows, for the progress bar.
        end_id: token that closes every candidate; None for no token.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = tqdm(rows, desc="Tokenizing", unit="row", total=total, mininterval=1)
    encoded = encoder.encode(shown, end_id)
    with pyarrow.ipc.new_stream(path, SCHEMA) as writer:
        for chunk in chunks(encoded, 512):
            writer.write_batch(pyarrow.RecordBatch.from_pylist(chunk, schema=SCHEMA))
    return Dataset.from_file(str(path))
