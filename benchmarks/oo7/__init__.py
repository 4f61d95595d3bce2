"""OO7, the classic benchmark of object databases.

After M. J. Carey, D. J. DeWitt, J. F. Naughton: "The OO7 Benchmark", SIGMOD 1993, and the technical report of the same
name (University of Wisconsin-Madison): its structure and its operations, written anew for Python.
"""
