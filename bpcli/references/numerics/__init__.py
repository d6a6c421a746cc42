"""The numerical analysis behind the references: on any loss that can be evaluated, without knowledge of networks."""
