//! Provided buffers: the kernel picks one of a group when there is something to put in it.
//!
//! A group is a ring of entries that both sides see, and the memory that the entries point into. This side adds entries and stores the tail;
//! the kernel takes them from the head. A buffer is either in the ring (the kernel's) or out (its bytes may be read and changed here).
//!
//! In an incremental group (Linux 6.12) one buffer takes several pieces, one behind the other, and stays in the ring until it is full: a few
//! large buffers then serve both bulk, where a receive should take as much as there is, and many small messages. What the kernel has filled is
//! never written to again before the whole buffer has been given back.

use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use super::ring::Ring;

/// See the module's doc.
pub(super) struct BufferGroup {
    id: u16,
    entries: Mapping,
    memory: Mapping,
    size: usize,
    count: u16,
    incremental: bool,
    tail: u16,
    buffers: Vec<State>,
    available: u16,
}

/// Where one buffer is.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// The kernel may fill it (further).
    in_ring: bool,
    /// Bytes that the kernel has filled.
    filled: u32,
    /// Pieces of it that are being read here.
    lent: u32,
}

impl BufferGroup {
    /// Maps and registers `count` (a power of two) buffers of `size` bytes.
    #[expect(unsafe_code, reason = "registers memory with the kernel")]
    pub(super) fn new(
        ring: &mut Ring,
        id: u16,
        count: u16,
        size: usize,
        incremental: bool,
    ) -> io::Result<Self> {
        debug_assert!(count.is_power_of_two());
        let entries = Mapping::new(usize::from(count) * size_of::<BufRingEntry>())?;
        let memory = Mapping::new(usize::from(count) * size)?;
        // SAFETY: a mapping is page-aligned, was made for `count` entries, and the owner of this group drops the ring before it.
        unsafe { ring.register_buffers(entries.address() as u64, count, id, incremental)? };
        let buffers = vec![State::default(); usize::from(count)];
        let mut group =
            Self { id, entries, memory, size, count, incremental, tail: 0, buffers, available: 0 };
        (0..count).for_each(|index| group.provide(index));
        Ok(group)
    }

    pub(super) const fn id(&self) -> u16 {
        self.id
    }

    pub(super) const fn size(&self) -> usize {
        self.size
    }

    /// How many buffers the kernel has.
    pub(super) const fn available(&self) -> u16 {
        self.available
    }

    /// The kernel has put `len` bytes into a buffer; `more`: and goes on with it. Says where they start. Each piece is to be given back.
    pub(super) fn take(&mut self, index: u16, len: u32, more: bool) -> u32 {
        let size = self.size as u32;
        let Some(state) = self.buffers.get_mut(usize::from(index)).filter(|state| state.in_ring) else {
            return size;
        };
        let start = state.filled;
        state.filled = start.saturating_add(len).min(size);
        state.lent += 1;
        if !(self.incremental && more) {
            state.in_ring = false;
            self.available -= 1;
        }
        start
    }

    /// Takes a piece back; the buffer goes to the kernel again when it was the last one of a full buffer.
    pub(super) fn give_back(&mut self, index: u16) {
        let Some(state) = self.buffers.get_mut(usize::from(index)) else { return };
        state.lent = state.lent.saturating_sub(1);
        if state.lent == 0 {
            self.provide(index);
        }
    }

    /// Gives a buffer (back) to the kernel. One that it has already stays there.
    #[expect(unsafe_code, reason = "writes an entry of the ring that the kernel reads")]
    fn provide(&mut self, index: u16) {
        match self.buffers.get_mut(usize::from(index)) {
            Some(state) if !state.in_ring => *state = State { in_ring: true, ..State::default() },
            _ => return,
        }
        self.available += 1;
        let ring = self.entries.base.cast::<BufRingEntry>();
        let address = self.memory.address() + usize::from(index) * self.size;
        // SAFETY: the slot lies in the mapping (masked by the power-of-two count). At most `count` entries are in the ring, since each buffer is
        // in it at most once, so the kernel does not read this slot before the tail below covers it. The slot is written field by
        // field, since in slot 0 the tail lies over the entry's unused field.
        unsafe {
            let entry = &mut *ring.add(usize::from(self.tail & (self.count - 1))).as_ptr();
            entry.set_addr(address as u64);
            entry.set_len(self.size as u32);
            entry.set_bid(index);
        }
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail lies in the first entry of the mapping, is aligned for u16, and this thread is its only writer; the kernel reads it
        // with acquire.
        unsafe {
            let tail = BufRingEntry::tail(ring.as_ptr().cast_const());
            AtomicU16::from_ptr(tail.cast_mut()).store(self.tail, Ordering::Release);
        }
    }

    /// `len` bytes from `start` of a buffer of which pieces are out; empty when the kernel has not filled them.
    #[expect(unsafe_code, reason = "the buffers lie in a mapping")]
    pub(super) fn bytes(&mut self, index: u16, start: u32, len: u32) -> &mut [u8] {
        let filled = match self.buffers.get(usize::from(index)) {
            Some(state) if state.lent > 0 => state.filled,
            _ => return &mut [],
        };
        if start.checked_add(len).is_none_or(|end| end > filled) {
            return &mut [];
        }
        // SAFETY: the piece lies in the mapping (`filled` is bounded by the size), is initialised (anonymous memory is zeroed), and the kernel has
        // filled it: it writes behind `filled` only, until the buffer is provided again, which needs all pieces to be back and the
        // borrow that the slice holds.
        unsafe {
            let start = self.memory.base.add(usize::from(index) * self.size + start as usize);
            std::slice::from_raw_parts_mut(start.as_ptr(), len as usize)
        }
    }
}

impl fmt::Debug for BufferGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferGroup")
            .field("id", &self.id)
            .field("size", &self.size)
            .field("count", &self.count)
            .field("available", &self.available)
            .finish_non_exhaustive()
    }
}

/// Anonymous memory, page-aligned and zeroed.
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

impl Mapping {
    #[expect(unsafe_code, reason = "mmap")]
    fn new(len: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new anonymous mapping touches no memory that exists.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
        };
        match NonNull::new(base.cast::<u8>()) {
            Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => Ok(Self { base, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }
}

impl Drop for Mapping {
    #[expect(unsafe_code, reason = "munmap")]
    fn drop(&mut self) {
        // SAFETY: the range is the one that mmap gave, and nobody holds a slice of it (slices borrow the group).
        unsafe {
            libc::munmap(self.base.as_ptr().cast(), self.len);
        }
    }
}
