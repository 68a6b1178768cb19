"""udp.py serve NAME: answers UDP 7777 with NAME, from the address that was asked.
udp.py ask ADDRESS: asks there every 10 ms until SIGTERM, then prints asked, lost and the longest gap in ms."""
import select, signal, socket, struct, sys, time


def serve(name):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
    s.bind(("0.0.0.0", 7777))
    while True:
        data, ancillary, _, peer = s.recvmsg(200, 200)
        asked = struct.unpack("I4s4s", ancillary[0][2][:12])[2]
        source = (socket.IPPROTO_IP, 8, struct.pack("I4s4s", 0, asked, bytes(4)))
        try:
            s.sendmsg([name.encode() + b" " + data], [source], 0, peer)
        except OSError:
            pass


def ask(address, step=0.01, patience=1.0):
    asking = True

    def end(*_):
        nonlocal asking
        asking = False

    signal.signal(signal.SIGTERM, end)
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setblocking(False)
    answered = []
    due = time.monotonic()
    stop = None
    while True:
        now = time.monotonic()
        if not asking and stop is None:
            stop = now + patience
        if stop is not None and now >= stop:
            break
        if stop is None and now >= due:
            try:
                s.sendto(b"%d" % len(answered), (address, 7777))
            except OSError:
                pass
            answered.append(False)
            due += step
        if select.select([s], [], [], 0.005)[0]:
            try:
                answered[int(s.recv(200).split()[1])] = True
            except OSError:
                pass
    gap = longest = 0
    for one in answered:
        gap = 0 if one else gap + 1
        longest = max(longest, gap)
    print(len(answered), answered.count(False), round(longest * step * 1000))


{"serve": serve, "ask": ask}[sys.argv[1]](sys.argv[2])
