"""The vision-token bank: what training films look like where a finding is seen (R2GenKG §2.7)."""
