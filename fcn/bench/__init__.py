"""Speed with its evidence: floors from the nets, ceilings of the machine, paired measurements."""
