"""Forward passes that do no more than is asked: partial, packed, continued from a cache. All exact, or not used."""
