# The specification's first example, verbatim: two ways to make a pipeline of one task.
from pyper import task

@task
def add_one(x: int):
    return x + 1

# OR

def add_one(x: int):
    return x + 1

pipeline = task(add_one)
