//! Trainers: supervised fine-tuning, and the loss, optimiser, schedule and checkpoint parts they share. Knows nothing of SQL.
