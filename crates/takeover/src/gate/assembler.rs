//! A few eBPF instructions (RFC 9669), put together by hand: no compiler is needed anywhere.

/// Registers: the result, arguments of calls, what calls leave alone, the end of the stack.
pub(super) const R0: u8 = 0;
pub(super) const R1: u8 = 1;
pub(super) const R2: u8 = 2;
pub(super) const R3: u8 = 3;
pub(super) const R4: u8 = 4;
pub(super) const R5: u8 = 5;
pub(super) const R6: u8 = 6;
pub(super) const R7: u8 = 7;
pub(super) const R8: u8 = 8;
pub(super) const R9: u8 = 9;
pub(super) const R10: u8 = 10;

/// Instructions, and jumps whose labels are still to be found.
#[derive(Default)]
pub(super) struct Assembler {
    code: Vec<[u8; 8]>,
    jumps: Vec<(usize, &'static str)>,
    labels: Vec<(&'static str, usize)>,
}

impl Assembler {
    fn push(&mut self, code: u8, to: u8, from: u8, offset: i16, value: i32) -> &mut Self {
        let [o0, o1] = offset.to_ne_bytes();
        let [v0, v1, v2, v3] = value.to_ne_bytes();
        // Two registers of four bits in one byte: the order in it is the machine's too.
        let registers = if cfg!(target_endian = "big") {
            to << 4 | from
        } else {
            from << 4 | to
        };
        self.code.push([code, registers, o0, o1, v0, v1, v2, v3]);
        self
    }

    /// `to = from`
    pub(super) fn copy(&mut self, to: u8, from: u8) -> &mut Self {
        self.push(0xbf, to, from, 0, 0)
    }

    /// `to = value`
    pub(super) fn set(&mut self, to: u8, value: i32) -> &mut Self {
        self.push(0xb7, to, 0, 0, value)
    }

    /// `to += value`
    pub(super) fn add(&mut self, to: u8, value: i32) -> &mut Self {
        self.push(0x07, to, 0, 0, value)
    }

    /// `to = *(u8 *)(from + offset)`
    pub(super) fn load8(&mut self, to: u8, from: u8, offset: i16) -> &mut Self {
        self.push(0x71, to, from, offset, 0)
    }

    /// `to = *(u32 *)(from + offset)`
    pub(super) fn load32(&mut self, to: u8, from: u8, offset: i16) -> &mut Self {
        self.push(0x61, to, from, offset, 0)
    }

    /// `to = *(u64 *)(from + offset)`
    pub(super) fn load64(&mut self, to: u8, from: u8, offset: i16) -> &mut Self {
        self.push(0x79, to, from, offset, 0)
    }

    /// `*(u32 *)(to + offset) = from`
    pub(super) fn store32(&mut self, to: u8, offset: i16, from: u8) -> &mut Self {
        self.push(0x63, to, from, offset, 0)
    }

    /// `*(u32 *)(to + offset) = value`
    pub(super) fn put32(&mut self, to: u8, offset: i16, value: i32) -> &mut Self {
        self.push(0x62, to, 0, offset, value)
    }

    /// `*(u64 *)(to + offset) = value`
    pub(super) fn put64(&mut self, to: u8, offset: i16, value: i32) -> &mut Self {
        self.push(0x7a, to, 0, offset, value)
    }

    /// Calls a function of the kernel: its result is in `R0`, `R1` to `R5` are gone.
    pub(super) fn call(&mut self, function: i32) -> &mut Self {
        self.push(0x85, 0, 0, 0, function)
    }

    /// Ends with `R0`.
    pub(super) fn exit(&mut self) -> &mut Self {
        self.push(0x95, 0, 0, 0, 0)
    }

    /// `to` = the map behind a descriptor.
    pub(super) fn map(&mut self, to: u8, fd: i32) -> &mut Self {
        self.push(0x18, to, 1, 0, fd).push(0, 0, 0, 0, 0)
    }

    /// Names the next instruction.
    pub(super) fn label(&mut self, name: &'static str) -> &mut Self {
        self.labels.push((name, self.code.len()));
        self
    }

    fn jump(&mut self, code: u8, a: u8, b: u8, value: i32, to: &'static str) -> &mut Self {
        self.jumps.push((self.code.len(), to));
        self.push(code, a, b, 0, value)
    }

    pub(super) fn go(&mut self, to: &'static str) -> &mut Self {
        self.jump(0x05, 0, 0, 0, to)
    }

    pub(super) fn if_equal(&mut self, a: u8, value: i32, to: &'static str) -> &mut Self {
        self.jump(0x15, a, 0, value, to)
    }

    pub(super) fn if_not(&mut self, a: u8, value: i32, to: &'static str) -> &mut Self {
        self.jump(0x55, a, 0, value, to)
    }

    /// If `a > b`, unsigned.
    pub(super) fn if_more(&mut self, a: u8, b: u8, to: &'static str) -> &mut Self {
        self.jump(0x2d, a, b, 0, to)
    }

    /// If the lower halves of both are equal (`jmp32`).
    pub(super) fn if_same32(&mut self, a: u8, b: u8, to: &'static str) -> &mut Self {
        self.jump(0x1e, a, b, 0, to)
    }

    /// The bytes; none if a jump leads nowhere.
    pub(super) fn finish(mut self) -> Option<Vec<u8>> {
        for (at, name) in &self.jumps {
            let (_, target) = self.labels.iter().find(|(label, _)| label == name)?;
            let distance = i16::try_from(target.checked_sub(at + 1)?).ok()?;
            self.code[*at][2..4].copy_from_slice(&distance.to_ne_bytes());
        }
        Some(self.code.concat())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn jumps_count_from_the_next_instruction() {
        let mut a = Assembler::default();
        a.if_equal(R1, 7, "end").set(R0, 1).label("end").exit();
        let code = a.finish().unwrap();
        assert_eq!(code.len(), 24);
        assert_eq!(i16::from_ne_bytes([code[2], code[3]]), 1);
    }

    #[test]
    fn a_jump_that_leads_nowhere_or_back_is_refused() {
        let mut a = Assembler::default();
        a.go("nowhere").exit();
        assert_eq!(a.finish(), None);
        let mut a = Assembler::default();
        a.label("loop").go("loop");
        assert_eq!(a.finish(), None);
    }
}
