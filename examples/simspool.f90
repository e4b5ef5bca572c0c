! simspool.f90: record a Fortran program's run, one line of JSON at a time.
!
! Copy this module; it needs nothing but the compiler. SIMSPOOL_INBOX names the folder of the run that the program is part of
! (`agent exec` sets it, and `agent log run --export`). Without it, nothing is recorded and nothing is in the way.
! One writer a file: give each process (rank) a name of its own.
module simspool
  implicit none
  private
  public :: simspool_log, simspool_open

  type :: simspool_log
    integer :: unit = 0
    logical :: is_open = .false.
  contains
    procedure :: metric
    procedure :: line
  end type

contains

  ! Open the log `name`.jsonl of the inbox.
  function simspool_open(name) result(log)
    character(*), intent(in) :: name
    type(simspool_log) :: log
    character(4096) :: inbox
    integer :: length, status

    call get_environment_variable('SIMSPOOL_INBOX', inbox, length, status)
    if (status /= 0 .or. length == 0) return
    open (newunit=log%unit, file=inbox(:length) // '/' // name // '.jsonl', position='append', action='write', iostat=status)
    log%is_open = status == 0
  end function

  ! Log some numbers of one step. NaN and Infinity are understood as Fortran prints them.
  subroutine metric(self, step, names, values)
    class(simspool_log), intent(in) :: self
    integer, intent(in) :: step
    character(*), intent(in) :: names(:)
    double precision, intent(in) :: values(:)
    integer :: i

    if (.not. self%is_open) return
    write (self%unit, '(a)', advance='no') '{"metrics": {'
    do i = 1, size(values)
      if (i > 1) write (self%unit, '(a)', advance='no') ', '
      write (self%unit, '(3a,g0)', advance='no') '"', trim(names(i)), '": ', values(i)
    end do
    write (self%unit, '(a,i0,a)') '}, "step": ', step, '}'
    flush (self%unit)
  end subroutine

  ! Log a whole line of your own.
  subroutine line(self, text)
    class(simspool_log), intent(in) :: self
    character(*), intent(in) :: text

    if (.not. self%is_open) return
    write (self%unit, '(a)') text
    flush (self%unit)
  end subroutine

end module
