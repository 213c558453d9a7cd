"""A pipeline is a callable like any other: it may be a task of another pipeline.

Its outputs are an iterable, so it is used with ``branch=True``.  Each call is a run of its own;
here up to three of them go on at the same time.
"""

from pyper import task

BOOKS = {
    "one": "the cat sat on the mat",
    "two": "the dog lay on the log",
    "three": "a bird flew by",
}


def words(title: str) -> list[str]:
    return BOOKS[title].split()


if __name__ == "__main__":
    words_of_a_book = task(words, branch=True) | task(str.upper)
    words_of_all = (
        task(sorted, branch=True)
        | task(words_of_a_book, branch=True, workers=3, ordered=True)
        | task(" ".join, join=True)
    )
    for text in words_of_all(BOOKS):
        print(text)
        #> THE CAT SAT ON THE MAT A BIRD FLEW BY THE DOG LAY ON THE LOG
