"""What the programs that try to break ember have counted, in one table.

    python -m tests.fuzz --record FILE
    python -m tests.reliability FILE

Each program writes its own figures (`record.py`); the table takes them as they are.
"""
