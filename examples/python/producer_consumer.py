"""Put the outputs of a pipeline into a database.

``pipeline > consumer`` makes a function: it runs the pipeline, hands the stream of outputs to the
consumer and returns what the consumer returns.  The consumer runs in the caller's thread, so it may
use what belongs to this thread, like a connection to SQLite.
"""

import csv
import sqlite3
from collections.abc import Iterable, Iterator

from pyper import task

READINGS = """\
station,celsius
Bergen,7.5
Athens,19
Bergen,6.5
Lima,n/a
Athens,21
"""


def rows(text: str) -> Iterator[dict[str, str]]:
    yield from csv.DictReader(text.splitlines())


def parse(row: dict[str, str]) -> list[tuple[str, float]]:
    """Return the reading, or nothing if there is none."""
    try:
        return [(row["station"], float(row["celsius"]))]
    except ValueError:
        return []


def store(readings: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """Store all readings and return the mean of each station."""
    database = sqlite3.connect(":memory:")
    try:
        database.execute("CREATE TABLE reading (station TEXT, celsius REAL)")
        database.executemany("INSERT INTO reading VALUES (?, ?)", readings)
        query = "SELECT station, avg(celsius) FROM reading GROUP BY station ORDER BY station"
        return database.execute(query).fetchall()
    finally:
        database.close()


if __name__ == "__main__":
    means = task(rows, branch=True) | task(parse, branch=True, workers=3) > store
    for station, celsius in means(READINGS):
        print(station, celsius)
        #> Athens 20.0
        #> Bergen 7.0
