"""ckptd beside real training frameworks. Each test module names the one that it needs."""
