"""``vllm bench serve`` by its module: the console command needs package metadata that source installs lack."""

import argparse

from vllm.benchmarks.serve import add_cli_args, main  # type: ignore[import-not-found]

parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
