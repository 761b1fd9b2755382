"""`python -m edgelink_controller` is `edgelink-controller`."""

from edgelink_controller.cli.controller import main

if __name__ == "__main__":
    main()
