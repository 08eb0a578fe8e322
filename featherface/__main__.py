"""``python -m featherface`` is the ``featherface`` command."""

from featherface.cli import main

main()
