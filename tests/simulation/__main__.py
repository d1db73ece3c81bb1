import sys

from tests.simulation.simulate import main

sys.exit(main())
