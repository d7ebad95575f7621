"""How the RTL is checked against the golden model: gate-level simulation, Verilator and formal proofs."""
