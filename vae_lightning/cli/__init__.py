"""The command line: LightningCLI with our parser, the dispatch of the verbs, errors in one line."""
