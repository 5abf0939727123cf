"""The commands: each module has add_arguments(parser) and run(args, reporter, stop).

They are imported to build the parser, so what is slow to import is imported inside run.
"""
