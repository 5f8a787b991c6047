"""The names of the runtimes that can run a network."""

AUTO, TENSORFLOW, LITERT = RUNTIMES = ("auto", "tensorflow", "litert")
