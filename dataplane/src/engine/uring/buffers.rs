//! Provided buffers: the kernel picks one of a group when there is something to put in it.
//!
//! A group is a ring of entries that both sides see, and the memory that the entries point into. This side adds entries and stores the tail;
//! the kernel takes them from the head. A buffer is either in the ring (the kernel's) or out (its bytes may be read and changed here).

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
    tail: u16,
    /// Which buffers are out: only those may be touched here.
    out: Vec<bool>,
    available: u16,
}

impl BufferGroup {
    /// Maps and registers `count` (a power of two) buffers of `size` bytes.
    #[expect(unsafe_code, reason = "registers memory with the kernel")]
    pub(super) fn new(ring: &mut Ring, id: u16, count: u16, size: usize) -> io::Result<Self> {
        debug_assert!(count.is_power_of_two());
        let entries = Mapping::new(usize::from(count) * size_of::<BufRingEntry>())?;
        let memory = Mapping::new(usize::from(count) * size)?;
        // SAFETY: a mapping is page-aligned, was made for `count` entries, and the owner of this group drops the ring before it.
        unsafe { ring.register_buffers(entries.address() as u64, count, id)? };
        let mut group = Self {
            id,
            entries,
            memory,
            size,
            count,
            tail: 0,
            out: vec![true; usize::from(count)],
            available: 0,
        };
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

    /// The kernel has put something into a buffer.
    pub(super) fn take(&mut self, index: u16) {
        if let Some(out) = self.out.get_mut(usize::from(index))
            && !*out
        {
            *out = true;
            self.available -= 1;
        }
    }

    /// Gives a buffer (back) to the kernel. One that it has already stays there.
    #[expect(unsafe_code, reason = "writes an entry of the ring that the kernel reads")]
    pub(super) fn provide(&mut self, index: u16) {
        match self.out.get_mut(usize::from(index)) {
            Some(out) if *out => *out = false,
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

    /// The bytes of a buffer that is out; empty for any other.
    #[expect(unsafe_code, reason = "the buffers lie in a mapping")]
    pub(super) fn bytes(&mut self, index: u16) -> &mut [u8] {
        if !self.out.get(usize::from(index)).copied().unwrap_or(false) {
            return &mut [];
        }
        // SAFETY: the buffer lies in the mapping, is initialised (anonymous memory is zeroed), and is out: the kernel does not write to it
        // until it is provided again, which needs the borrow that the slice holds.
        unsafe {
            let start = self.memory.base.add(usize::from(index) * self.size);
            std::slice::from_raw_parts_mut(start.as_ptr(), self.size)
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
