"""Reports on a run: pictures and model cards. They read records, never a live model or trainer."""
