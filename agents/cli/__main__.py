"""``python -m unspoken.agents.cli``, where the script is not on the path."""

from unspoken.agents.cli.main import main

main()
