"""Commits: in memory, and on the disk, which a job that has failed is started again from.

`voted.py` sees to it that all ranks have the same one in memory. The others are of those on the disk.

`files.py` is one file, `folder.py` the commits that a folder holds, `writer.py` the thread that writes them; these
three know nothing of ranks that talk to each other, and need Python alone, as the launcher reads commits too.
`agreed.py` is what all ranks together make of a folder, `loading.py` how they get a commit back, `kept.py` what a
`State` does with both, and `generators.py` the random numbers. docs/elastic.md says what is promised.
"""
