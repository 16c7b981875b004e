"""The fault battery: whole installations on real servers, one fault a case, and an account of every job id."""
