//! What a round may cost, whatever the number of nodes is.
