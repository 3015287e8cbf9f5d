"""A conformance suite for back-ends: what ``protocol-spec/`` states, put to the test at the socket.

==============  =============================================================================
``check``       a check: a function that proves statements, and the register of all of them
``checks/``     the checks themselves, a module an area
``probe``       what a check works with: connections, memory, descriptors, all of it recorded
``connection``  one connection: what was said, and whether the answer is as it has to be
``driver``      a driver's rings at the back-end
``chains``      a ring whose chains a check lays by hand, in either layout
``packets``     packets through a queue pair whose port sends them back
``devices``     what makes a device complete a chain: network, block, entropy
``record``      what happened, as a transcript
``target``      where the back-end is: at a path, or started anew for each check
``suite``       runs the checks
``quirks``      what is known of peers that differ
``report``      the results as text, JSON and JUnit
==============  =============================================================================
"""
