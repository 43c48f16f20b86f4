"""What commands show of runs: tables and sentences."""
