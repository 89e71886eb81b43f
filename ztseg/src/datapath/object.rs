//! The kernel object that this binary carries.

/// An ELF reader wants the file's start aligned to 8 bytes; `include_bytes!` alone aligns to 1.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> =
    &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/ztseg-ebpf.o")));

/// The eBPF object as an ELF file, aligned to 8 bytes. Empty when the binary was built without it,
/// that is, not by `cargo xtask build`.
pub fn bytes() -> &'static [u8] {
    &OBJECT.0
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn is_empty_or_an_aligned_bpf_elf_file() {
        let object = bytes();
        if object.is_empty() {
            return;
        }
        assert_eq!(object.as_ptr().align_offset(8), 0);
        assert_eq!(&object[..4], b"\x7fELF");
        // e_machine of the ELF header, EM_BPF (include/uapi/linux/elf-em.h).
        assert_eq!(object[18..20], 247_u16.to_le_bytes());
    }
}
