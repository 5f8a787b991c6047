"""Where a run writes what."""

import os


def output_paths(options):
    """{flag, or what it is: path} of the files that a run writes."""
    flags = ["output_graph", "output_labels", "metrics"]
    flags += ["export_vectors"] * (options.export_vectors is not None)
    flags += ["report"] * (not options.no_report) + ["label_audit"] * bool(options.label_audit)
    flags += [flag for flag in ("tflite_file", "onnx_file") if getattr(options, flag)]
    paths = {f"--{flag}": getattr(options, flag) for flag in flags}
    paths |= {"the table of --compare": comparison_path(options)} if options.compare else {}
    return {**paths, "the list of bad images": bad_images_path(options)}


def bad_images_path(options):
    """Where the list of files that were left out goes: beside the graph."""
    return os.path.join(os.path.dirname(options.output_graph), "bad_images.tsv")


def comparison_path(options):
    """Where the table of --compare goes: beside the graph."""
    return os.path.join(os.path.dirname(options.output_graph), "comparison.tsv")
