"""The demo: from drawn photographs to a report, each step a command of this program."""
